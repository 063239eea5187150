"""Words beside images: radiology reports as minimal sentences."""
