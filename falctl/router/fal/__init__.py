"""What fal's clients call besides their app: the queue, files, tokens, webhooks, the proxy for JavaScript."""
