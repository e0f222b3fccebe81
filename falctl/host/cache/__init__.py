"""The bottom of the model cache: weights as bytes that move between disk, host and device; torch may be imported here."""
