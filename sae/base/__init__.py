"""What all packages use: files written whole or not at all, progress, random draws, the device, tables."""
