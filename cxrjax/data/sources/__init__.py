"""Where images and their labels come from: folders, tables, TFDS data sets, mixtures, phantoms."""
