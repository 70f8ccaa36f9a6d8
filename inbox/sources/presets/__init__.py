"""One file for each provider; `inbox.sources.PRESETS` has them by name."""
