"""Charts and self-contained pages, whatever they show."""
