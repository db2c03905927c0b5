"""The table of docs/families.md."""

def table(results):
    return ""
