"""The store: packs, index, import, query, frames, maintenance. Speaks no protocol and prints nothing."""
