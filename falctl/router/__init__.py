"""The one process that listens: HTTP edge, queue, scheduler, proxy, files."""
