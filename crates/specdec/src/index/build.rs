//! Building an index: documents in, one file out, shard by shard.
//!
//! Shards are sorted side by side, one thread each: sorting one text with several threads gains little and waits for its
//! slowest thread, which is costly on a machine with other work. At any time the builder holds the tokens
//! and, for each shard at work, four bytes per token for the order (eight with the sorter's work space).

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use rayon::prelude::*;

use super::error::IndexError;
use super::format::{Header, KEY, PAGE, STRIDE, Section, ShardParts, checksum, separator, width_of};
use super::sais::suffix_array;

/// No shard is larger: its positions must fit 31 bits.
const LARGEST: usize = i32::MAX as usize - (1 << 20);

/// How an index is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOptions {
    /// At most this many tokens per shard. Fewer, larger shards are faster to search; a shard at work needs about eight
    /// bytes of memory per token. `None`: one shard for each of `threads`, within limits.
    pub shard_tokens: Option<usize>,
    /// Shards at work at a time.
    pub threads: usize,
    /// Matches up to this length are found even where they cross from one shard to the next.
    pub overlap: usize,
}

impl Default for BuildOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { shard_tokens: None, threads, overlap: 256 }
    }
}

/// Below this many tokens a second shard costs more in every search than it saves once.
const SMALL: usize = 1 << 23;

/// Collects documents and writes them with their order.
///
/// ```
/// use kindling_specdec::index::{BuildOptions, Index, IndexBuilder};
///
/// let mut builder = IndexBuilder::new(10, [0; 32], BuildOptions::default())?;
/// builder.push(&[5, 1, 2, 3, 1, 2, 4, 1, 2, 3, 5])?;
/// let index = Index::read(builder.into_bytes()?)?;
/// assert_eq!(index.count(&[1, 2, 3]), 2);
/// assert_eq!(index.longest(&[7, 4, 1, 2]).len, 3);
/// # Ok::<(), kindling_specdec::index::IndexError>(())
/// ```
#[derive(Debug)]
pub struct IndexBuilder {
    vocab: usize,
    tokenizer: [u8; 32],
    width: usize,
    options: BuildOptions,
    /// Big-endian tokens, each document followed by a separator.
    text: Vec<u8>,
    documents: u64,
}

impl IndexBuilder {
    /// An empty builder for tokens below `vocab` of the tokenizer that `tokenizer` names (a SHA-256 of its files, say).
    ///
    /// # Errors
    /// [`IndexError::Options`] if the options cannot be obeyed, or the vocabulary is empty.
    pub fn new(vocab: usize, tokenizer: [u8; 32], options: BuildOptions) -> Result<Self, IndexError> {
        if vocab == 0 || vocab >= u32::MAX as usize {
            return Err(IndexError::Options(format!("a vocabulary of {vocab} tokens cannot be indexed")));
        }
        if options.threads == 0 || options.shard_tokens == Some(0) || options.shard_tokens > Some(LARGEST) {
            return Err(IndexError::Options(format!(
                "{} threads and shards of {:?} tokens: at least 1 thread and 1 to {LARGEST} tokens are needed",
                options.threads, options.shard_tokens
            )));
        }
        Ok(Self { vocab, tokenizer, width: width_of(vocab), options, text: Vec::new(), documents: 0 })
    }

    /// Adds a document. Matches never cross from one to the next. A document without tokens adds nothing.
    ///
    /// # Errors
    /// [`IndexError::Token`] if a token is not below the vocabulary.
    pub fn push(&mut self, document: &[u32]) -> Result<(), IndexError> {
        if let Some(place) = document.iter().position(|&token| token as usize >= self.vocab) {
            let (token, vocab) = (document[place], self.vocab);
            return Err(IndexError::Token { token, place, document: self.documents as usize, vocab });
        }
        if document.is_empty() {
            return Ok(());
        }
        self.documents += 1;
        self.text.reserve((document.len() + 1) * self.width);
        document.iter().chain([&separator(self.width)]).for_each(|token| put(&mut self.text, *token, self.width));
        Ok(())
    }

    /// Adds a document of bytes as they are, each a token.
    ///
    /// # Errors
    /// [`IndexError::Token`] if a byte is not below the vocabulary.
    pub fn push_bytes(&mut self, document: &[u8]) -> Result<(), IndexError> {
        if self.width > 1 || document.is_empty() {
            return self.push(&document.iter().map(|&byte| u32::from(byte)).collect::<Vec<_>>());
        }
        if let Some(place) = document.iter().position(|&byte| usize::from(byte) >= self.vocab) {
            let (token, vocab) = (u32::from(document[place]), self.vocab);
            return Err(IndexError::Token { token, place, document: self.documents as usize, vocab });
        }
        self.documents += 1;
        self.text.extend_from_slice(document);
        self.text.push(u8::MAX);
        Ok(())
    }

    /// Tokens so far, separators included.
    pub fn tokens(&self) -> usize {
        self.text.len() / self.width
    }

    /// The index as bytes in memory.
    ///
    /// # Errors
    /// [`IndexError::Empty`] without tokens.
    pub fn into_bytes(self) -> Result<Vec<u8>, IndexError> {
        let mut out = std::io::Cursor::new(Vec::new());
        self.write_to(&mut out, Path::new("memory"))?;
        Ok(out.into_inner())
    }

    /// Writes the index to `path`. The file appears under its name once it is complete and on the disk.
    ///
    /// # Errors
    /// [`IndexError::Empty`] without tokens; [`IndexError::Io`] if the file cannot be written, `path` is then untouched.
    pub fn write(self, path: impl AsRef<Path>) -> Result<(), IndexError> {
        let path = path.as_ref();
        let fail = |source| IndexError::io("write", path, source);
        let name = path.file_name().ok_or_else(|| fail(std::io::ErrorKind::InvalidInput.into()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".tmp");
        let temporary = path.with_file_name(hidden);
        let written = File::create(&temporary).map_err(fail).and_then(|file| {
            let mut file = BufWriter::with_capacity(1 << 20, file);
            self.write_to(&mut file, path)?;
            file.into_inner().map_err(|error| fail(error.into_error()))?.sync_all().map_err(fail)
        });
        let renamed = written.and_then(|()| fs::rename(&temporary, path).map_err(fail));
        if renamed.is_err() {
            // The first error is the one to report; a leftover is overwritten by the next attempt.
            let _ = fs::remove_file(&temporary);
        }
        renamed
    }

    fn write_to(self, out: &mut (impl Write + Seek), path: &Path) -> Result<(), IndexError> {
        let fail = |source| IndexError::io("write", path, source);
        if self.text.is_empty() {
            return Err(IndexError::Empty);
        }
        let shards = self.shards();
        let mut at = Header::bytes(shards.len());
        let mut header = Header {
            width: self.width,
            vocab: self.vocab,
            tokens: self.tokens() as u64,
            documents: self.documents,
            overlap: self.options.overlap,
            tokenizer: self.tokenizer,
            shards: Vec::with_capacity(shards.len()),
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.options.threads).build();
        let pool = pool.map_err(|error| IndexError::Options(format!("no threads: {error}")))?;
        for group in shards.chunks(self.options.threads) {
            let built: Vec<Built> = pool.install(|| group.par_iter().map(|shard| self.build(shard.clone())).collect());
            for shard in built {
                let mut parts = ShardParts { suffixes: shard.order.len(), ..ShardParts::default() };
                let sections = [&mut parts.text, &mut parts.order, &mut parts.top];
                let bytes = [&shard.text[..], bytemuck::cast_slice(&shard.order), &shard.top];
                for ((section, bytes), checksum) in sections.into_iter().zip(bytes).zip(shard.checksums) {
                    out.seek(SeekFrom::Start(at as u64)).map_err(fail)?;
                    out.write_all(bytes).map_err(fail)?;
                    *section = Section { bytes: at..at + bytes.len(), checksum };
                    at = (at + bytes.len()).next_multiple_of(PAGE);
                }
                header.shards.push(parts);
            }
        }
        out.seek(SeekFrom::Start(0)).map_err(fail)?;
        out.write_all(&header.write()).map_err(fail)?;
        out.flush().map_err(fail)
    }

    /// Tokens of each shard.
    fn shards(&self) -> Vec<std::ops::Range<usize>> {
        let tokens = self.tokens();
        let wanted = if tokens <= SMALL { tokens } else { tokens.div_ceil(self.options.threads) };
        let size = self.options.shard_tokens.unwrap_or(wanted).clamp(1, LARGEST);
        // Shards of equal size.
        let count = tokens.div_ceil(size);
        (0..count).map(|i| tokens * i / count..tokens * (i + 1) / count).collect()
    }

    fn build(&self, tokens: std::ops::Range<usize>) -> Built {
        let width = self.width;
        let suffixes = tokens.len();
        let end = (tokens.end + self.options.overlap).min(self.tokens());
        let mut text = self.text[tokens.start * width..end * width].to_vec();
        // The end of the data reads like the end of a document, see `search`.
        if end < self.tokens() {
            put(&mut text, separator(width), width);
        }
        let symbols = separator(width) as usize + 1;
        let order = match width {
            1 => sorted(&text, symbols),
            2 => sorted(&text.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect::<Vec<_>>(), symbols),
            _ => {
                // The separator is the largest symbol; as a number it would need 2^32 buckets.
                let wide = text.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
                sorted(&wide.map(|token| token.min(self.vocab as u32)).collect::<Vec<_>>(), self.vocab + 1)
            }
        };
        let mut order = order;
        if text.len() / width > suffixes {
            order.retain(|&at| (at as usize) < suffixes);
        }
        let mut top = Vec::with_capacity(suffixes.div_ceil(STRIDE) * KEY);
        for &at in order.iter().step_by(STRIDE) {
            let suffix = &text[at as usize * width..];
            let mut key = [0; KEY];
            let len = suffix.len().min(KEY);
            key[..len].copy_from_slice(&suffix[..len]);
            top.extend_from_slice(&key);
        }
        order.iter_mut().for_each(|at| *at = at.to_le());
        let checksums = [checksum(&text), checksum(bytemuck::cast_slice(&order)), checksum(&top)];
        Built { text, order, top, checksums }
    }
}

/// The sections of a shard.
struct Built {
    text: Vec<u8>,
    order: Vec<u32>,
    top: Vec<u8>,
    checksums: [[u8; 32]; 3],
}

fn put(text: &mut Vec<u8>, token: u32, width: usize) {
    text.extend_from_slice(&token.to_be_bytes()[4 - width..]);
}

/// The order of suffixes by the fastest sorter that is compiled in.
#[cfg(not(feature = "libsais"))]
fn sorted<T: super::sais::Symbol>(text: &[T], symbols: usize) -> Vec<u32> {
    suffix_array(text, symbols)
}

#[cfg(feature = "libsais")]
use with_libsais::sorted;

#[cfg(feature = "libsais")]
mod with_libsais {
    //! The C library is three times as fast as [`suffix_array`].

    use libsais::SuffixArrayConstruction;

    use super::super::sais::Symbol;
    use super::suffix_array;

    /// A text that the library sorts.
    pub(super) trait Sortable: Symbol {
        fn library(text: &[Self]) -> Option<Vec<i32>>;
    }

    macro_rules! sortable {
        ($symbol:ty) => {
            impl Sortable for $symbol {
                fn library(text: &[Self]) -> Option<Vec<i32>> {
                    let sorter = SuffixArrayConstruction::for_text(text).in_owned_buffer32().single_threaded();
                    sorter.run().ok().map(|order| order.into_vec())
                }
            }
        };
    }
    sortable!(u8);
    sortable!(u16);

    impl Sortable for u32 {
        fn library(text: &[Self]) -> Option<Vec<i32>> {
            let mut text: Vec<i32> = text.iter().map(|&token| token as i32).collect();
            SuffixArrayConstruction::for_text_mut(&mut text)
                .in_owned_buffer32()
                .single_threaded()
                .run()
                .ok()
                .map(|order| order.into_vec())
        }
    }

    pub(super) fn sorted<T: Sortable>(text: &[T], symbols: usize) -> Vec<u32> {
        match T::library(text) {
            Some(order) => order.into_iter().map(|at| at as u32).collect(),
            // It refuses only what it has no memory for, or cannot count; the other sorter needs less.
            None => suffix_array(text, symbols),
        }
    }
}
