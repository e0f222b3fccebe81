"""The clients' side: connections with their limits, who may enter, and which room answers."""
