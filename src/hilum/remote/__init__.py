"""DICOMweb as its client: asks, sends to and takes from other servers, over the standard library's HTTP."""
