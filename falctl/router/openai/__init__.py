"""OpenAI's images API over the app that runs."""
