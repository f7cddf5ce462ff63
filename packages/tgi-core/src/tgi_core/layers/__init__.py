"""Building blocks of models.  Each takes the kernels it calls when it is built, and knows how to load itself."""
