"""One HTML page that shows a plan: templates, charts, and what they are made from."""
