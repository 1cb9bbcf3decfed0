"""Input that nobody would send in good faith."""
