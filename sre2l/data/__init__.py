"""Images and labels: data sets, real images, image folders, crops, label files, and what loads them."""
