"""Names for the regions of any image: as a function, as files, for the web page."""
