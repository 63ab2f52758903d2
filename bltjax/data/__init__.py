"""From documents to batches: sources, the corpus on disk, its id stream, the rows cut from it, and the pipeline.

Raw bytes all the way; numpy only, apart from Grain in `pipeline`. Nothing here knows of models: where the patches of
a text start comes in as an array.
"""
