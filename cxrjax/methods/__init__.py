"""Methods, one file each: what is learned, from which views, with which loss."""
