"""The Standard as tables and pure functions. Opens no file, keeps no state, imports no outside library."""
