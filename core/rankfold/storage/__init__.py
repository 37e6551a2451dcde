"""Files and folders: safetensors, compressed models, atomic writes."""
