"""Other tools' formats, one file each: what they write is read, what they read is written."""
