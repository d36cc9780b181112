"""What a publisher uploads, made of an archive: files, their model card, their sums and signatures."""
