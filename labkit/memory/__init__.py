"""What training needs beside the weights, and how to need less: recomputed activations, small batches added up."""
