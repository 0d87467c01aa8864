"""How settings become objects: plain YAML, a list of classes that may be named, errors in words."""
