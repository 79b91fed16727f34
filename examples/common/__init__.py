"""What the examples share: data, files, pictures, tables, and errors that a reader can mend."""
