"""A direct request, or a websocket, on its way to a runner and back."""
