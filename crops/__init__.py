"""Which pixels: the crop plan, the views of a sample, cutting, mixing and the crop codecs."""
