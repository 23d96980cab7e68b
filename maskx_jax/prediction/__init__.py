"""A trained model on pictures from anywhere: files, folders, videos, arrays. Predictions of one picture as NumPy."""
