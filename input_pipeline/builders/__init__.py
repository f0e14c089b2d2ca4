"""The data sets as TensorFlow Datasets builders, for those whose pipeline starts there.

    from input_pipeline.builders.coco_stuff import CocoStuff

    builder = CocoStuff(data_root="/data/coco")
    builder.download_and_prepare()
    train = builder.as_dataset(split="train")

Once its module is imported, `tfds.load("coco_stuff", builder_kwargs={"data_root": ...})` works too.
`published.BUILDERS` has those of all published data sets, `folder.Folder` reads one's own.
Prepared data is read again without `data_root`; `ShapesWorld`, which draws its scenes, has none.
Training and precomputing proposals need no builder: they read the same files directly
(`input_pipeline.layouts.open_dataset`).
"""
