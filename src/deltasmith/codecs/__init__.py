"""The codecs: delta ↔ named arrays, one file each."""
