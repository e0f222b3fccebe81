"""Files that clients send: fal's storage endpoints over the folder of stored files."""
