"""What every room uses: files written whole or not at all, progress, random draws, the device, tables."""
