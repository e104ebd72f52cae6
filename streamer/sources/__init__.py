"""Where frames come from: files, cameras, folders of images and the synthetic street."""
