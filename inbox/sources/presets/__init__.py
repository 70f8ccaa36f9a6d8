"""One file for each provider, from which `inbox.sources.PRESETS` takes its `PRESET`."""
