"""DIMSE: the store as a DICOM node. Parses the request, makes one engine call, streams the answer."""
