"""How long whole networks take to plan and to compress, and where the time goes."""
