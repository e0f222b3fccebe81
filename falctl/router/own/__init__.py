"""What falctl tells of itself: health, status, reasons, logs, and the files that it keeps."""
