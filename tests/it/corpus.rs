//! Corpora: every file format gives its documents in order, from any place on; what cannot be read says why.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, LargeStringArray, RecordBatch, StringArray};
use lapidary::corpus::{Bos, Content, Corpus, CorpusConfig, Document, Format, Kind, Tokenizer};
use lapidary::{Error, Result};

use crate::support::{shared_data, skip};

fn open(source: &Path) -> Result<Corpus> {
    Corpus::open(&CorpusConfig::new(source.to_string_lossy()))
}

fn texts(corpus: &Corpus) -> Result<Vec<String>> {
    let text = |d: Document| match d.content {
        Content::Text(text) => text,
        Content::Tokens(ids) => format!("{ids:?}"),
    };
    corpus.documents()?.map(|d| d.map(text)).collect()
}

fn table(path: &Path, column: ArrayRef) {
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let properties = parquet::file::properties::WriterProperties::builder().set_max_row_group_row_count(Some(3)).build();
    let mut writer = parquet::arrow::ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// A folder with a text file, JSON lines and two tables, among other things.
fn folder(dir: &Path) {
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write("a.txt", "one<|endoftext|>two");
    write("b.jsonl", "{\"text\": \"three\", \"id\": 7}\n\n{\"id\": 8, \"text\": \"four\\n\"}");
    table(&dir.join("c.parquet"), Arc::new(StringArray::from(vec![Some("five"), None, Some("seven"), Some("eight")])));
    std::fs::create_dir(dir.join("d")).unwrap();
    table(&dir.join("d/e.parquet"), Arc::new(LargeStringArray::from(vec!["nine"])));
    write("README.md", "not a document");
    write(".hidden.txt", "not a document");
}

const ALL: [&str; 9] = ["one", "two", "three", "four\n", "five", "", "seven", "eight", "nine"];

#[test]
fn a_folder_is_read_in_name_order_from_any_document_on() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    let corpus = open(dir.path()).unwrap();
    assert_eq!((corpus.kind(), texts(&corpus).unwrap()), (Kind::Text, ALL.map(String::from).to_vec()));
    for from in 0..12 {
        let rest: Vec<Document> = corpus.documents_from(from).unwrap().map(Result::unwrap).collect();
        let expected = ALL.iter().enumerate().skip(from as usize);
        let expected: Vec<_> = expected.map(|(i, t)| Document { ordinal: i as u64, content: Content::Text(t.to_string()) }).collect();
        assert_eq!(rest, expected);
    }
    let provenance = corpus.provenance().unwrap();
    assert_eq!((&provenance["n_files"], &provenance["files"][3]["name"]), (&4.into(), &"d/e.parquet".into()));
    // Hashes are of contents and names, not of where the folder lies.
    let elsewhere = tempfile::tempdir().unwrap();
    folder(elsewhere.path());
    assert_eq!(open(elsewhere.path()).unwrap().provenance().unwrap(), provenance);
    std::fs::write(elsewhere.path().join("a.txt"), "one<|endoftext|>TWO").unwrap();
    assert_ne!(open(elsewhere.path()).unwrap().provenance().unwrap()["sha256"], provenance["sha256"]);
}

#[test]
fn globs_and_formats_by_name_or_by_word() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    assert_eq!(texts(&open(&dir.path().join("*.parquet")).unwrap()).unwrap(), ALL[4..8]);
    assert_eq!(texts(&open(&dir.path().join("**/*.parquet")).unwrap()).unwrap(), ALL[4..]);
    assert_eq!(texts(&open(&dir.path().join("b.jsonl")).unwrap()).unwrap(), ALL[2..4]);
    let readme = dir.path().join("README.md").to_string_lossy().into_owned();
    assert!(matches!(Corpus::open(&CorpusConfig::new(readme.clone())), Err(Error::Request { .. })));
    let told = CorpusConfig { format: Some(Format::Text), ..CorpusConfig::new(readme) };
    assert_eq!(texts(&Corpus::open(&told).unwrap()).unwrap(), ["not a document"]);
}

#[test]
fn what_cannot_be_read_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let error = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        open(&path).and_then(|c| texts(&c)).unwrap_err().to_string()
    };
    let e = error("x.jsonl", b"{\"text\": \"a\"}\n\n{\"body\": \"b\", \"id\": 1}\n");
    assert!(e.contains("line 3 has no field `text`; it has: body, id") && e.contains("corpus.text_field"), "{e}");
    assert!(error("x.jsonl", b"{\"text\": 1}").contains("line 1: field `text` is no string"));
    assert!(error("x.jsonl", b"{\"text\": ").contains("line 1 is not JSON"));
    assert!(error("x.parquet", b"PAR1").contains("not a readable Parquet file"));
    assert!(error("x.txt", b"good \xFFbad").contains("byte 5"));
    assert!(error("x.u16", &[1, 0, 2, 0]).contains("corpus.doc_token"));
    let missing = open(&dir.path().join("missing.txt")).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
    assert!(open(&dir.path().join("*.none")).unwrap_err().to_string().contains("no file matches"));
    let e = open(dir.path()).unwrap_err().to_string();
    assert!(e.contains("mixes text with token ids"), "{e}");
    let empty = tempfile::tempdir().unwrap();
    assert!(open(empty.path()).unwrap_err().to_string().contains("no corpus file"));
    assert!(matches!(Corpus::open(&CorpusConfig::new("hf:some/dataset")), Err(Error::Unsupported { .. })));
}

#[test]
fn a_real_tokenizer_and_real_stories() {
    let Some(data) = shared_data() else { return skip("no shared data beside the checkout") };
    let tokenizer = Tokenizer::load(&data.join("stories260K/hf")).unwrap();
    let corpus = open(&data.join("stories260K/sampled_stories.txt")).unwrap();
    let documents: Vec<Document> = corpus.documents().unwrap().map(Result::unwrap).collect();
    assert_eq!(documents.len(), 3886, "one of the 3,887 stories is empty");
    let Content::Text(first) = &documents[0].content else { panic!("text") };
    assert!(first.starts_with("Once there was a duck") && first.ends_with("not always careful."));
    let ids = tokenizer.encode(first, Bos::Tokenizer).unwrap();
    assert_eq!((ids[0], tokenizer.bos(), tokenizer.vocab_size()), (1, Some(1), 512));
    assert_eq!(tokenizer.encode(first, Bos::Never).unwrap(), ids[1..]);
    assert_eq!(tokenizer.decode(&ids[1..]).unwrap(), *first);
    let tokens = CorpusConfig { doc_token: Some(1), ..CorpusConfig::new(data.join("stories260K/sampled_tokens.u16").to_string_lossy()) };
    let tokens = Corpus::open(&tokens).unwrap();
    assert_eq!(tokens.documents().unwrap().count(), 3887);
}
