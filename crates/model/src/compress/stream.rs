//! Activations in a file: rows of one shape, read and written batch by batch.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};

use crate::error::{ModelError, Result};

/// `rows` sequences of `[tokens, width]` in f32.
#[derive(Debug, Clone)]
pub(super) struct ActivationFile {
    path: PathBuf,
    rows: usize,
    tokens: usize,
    width: usize,
}

impl ActivationFile {
    /// An existing file; an error if its length is not that of the shape.
    pub(super) fn open(path: &Path, rows: usize, tokens: usize, width: usize) -> Result<Self> {
        let file = Self { path: path.to_path_buf(), rows, tokens, width };
        let found = std::fs::metadata(path).map_err(ModelError::io(path))?.len();
        let expected = file.row_bytes() * rows as u64;
        if found != expected {
            return Err(ModelError::Input(format!(
                "{}: expected {expected} bytes of activations, found {found}; start again with --force",
                path.display()
            )));
        }
        Ok(file)
    }

    fn row_bytes(&self) -> u64 {
        (self.tokens * self.width * 4) as u64
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Rows `from..to` as `[to − from, tokens, width]`.
    pub(super) fn read(&self, from: usize, to: usize, device: &Device) -> Result<Tensor<3>> {
        let mut values = vec![0f32; (to - from) * self.tokens * self.width];
        let mut file = File::open(&self.path).map_err(ModelError::io(&self.path))?;
        file.seek(SeekFrom::Start(self.row_bytes() * from as u64)).map_err(ModelError::io(&self.path))?;
        file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(ModelError::io(&self.path))?;
        values.iter_mut().for_each(|v| *v = f32::from_bits(u32::from_le(v.to_bits())));
        Ok(Tensor::from_data(TensorData::new(values, [to - from, self.tokens, self.width]), device))
    }
}

/// Writes an [`ActivationFile`] from its first row to its last. The file bears its name only once it is whole.
pub(super) struct ActivationWriter {
    file: ActivationFile,
    temporary: PathBuf,
    out: BufWriter<File>,
}

impl ActivationWriter {
    pub(super) fn create(path: &Path, rows: usize, tokens: usize, width: usize) -> Result<Self> {
        let temporary = path.with_extension("tmp");
        let out = BufWriter::new(File::create(&temporary).map_err(ModelError::io(&temporary))?);
        Ok(Self { file: ActivationFile { path: path.to_path_buf(), rows, tokens, width }, temporary, out })
    }

    pub(super) fn push(&mut self, x: Tensor<3>) -> Result<()> {
        let mut values = super::collect::host_values(x)?;
        values.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits().to_le()));
        self.out.write_all(bytemuck::cast_slice(&values)).map_err(ModelError::io(&self.temporary))?;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<ActivationFile> {
        let Self { file, temporary, out } = self;
        let out = out.into_inner().map_err(|e| ModelError::io(&temporary)(e.into_error()))?;
        out.sync_all().map_err(ModelError::io(&temporary))?;
        std::fs::rename(&temporary, &file.path).map_err(ModelError::io(&file.path))?;
        ActivationFile::open(&file.path, file.rows, file.tokens, file.width)
    }
}
