"""How files are opened: outputs that appear whole or not at all, and inputs that are what they seem. No contents."""
