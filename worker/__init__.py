"""A Kafka stream-processing worker that turns images into CLIP embeddings."""
