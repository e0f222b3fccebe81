"""The runner process: serves one app on its cards, keeps its slots, publishes its hints."""
