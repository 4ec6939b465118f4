"""DICOMweb over one store: parse the request, one engine call, stream the answer. Knows no pack."""
