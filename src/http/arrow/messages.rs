//! A body as whole messages of an Arrow IPC stream, bounded in size and time, and checked before they are decoded: what a message says
//! of lengths and places is not believed. What the columns mean is not known here.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{RecordBatchDecoder, read_dictionary};
use arrow_ipc::{Message as Head, MessageHeader};
use arrow_schema::{DataType, FieldRef, Schema, SchemaRef};
use axum::body::Bytes;
use tokio::time::timeout;

use super::super::Limits;
use super::super::incoming::{Held, Incoming};
use super::super::problem::{Code, Problem};

/// The largest head of a message: the schema with all its metadata, or the places of a batch's buffers.
const HEAD_BYTES_MAX: usize = 1 << 20;
/// What stands before the head: a marker, and its length.
const PREFIX: usize = 8;
const MARKER: [u8; 4] = [0xff; 4];

/// What the messages of a stream say: its schema, and the dictionaries so far.
pub(super) struct Decoder {
    schema: SchemaRef,
    dictionaries: HashMap<i64, ArrayRef>,
    /// The bytes of each dictionary that is kept, and what they count for.
    held: HashMap<i64, (usize, Held)>,
}

impl Decoder {
    /// A decoder by the first message of a stream.
    ///
    /// Errors: it is no schema.
    pub(super) fn new(first: &Message) -> Result<Self, Problem> {
        let head = read(&first.head)?;
        let schema = head.header_as_schema().ok_or_else(|| malformed(&"its first message is not a schema"))?;
        let schema = Arc::new(try_fb_to_schema(schema).map_err(|error| malformed(&error))?);
        Ok(Self { schema, dictionaries: HashMap::new(), held: HashMap::new() })
    }

    /// The schema.
    pub(super) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The rows in a message; `None` where it was a dictionary. Only to be asked where every column is of a type that [`is_read`].
    ///
    /// Errors: more rows than a batch may have; dictionaries that are too large; a message that is not what the schema says.
    pub(super) fn rows(&mut self, message: &mut Message, limits: &Limits) -> Result<Option<RecordBatch>, Problem> {
        let (head, body) = (read(&message.head)?, &message.body);
        match head.header_type() {
            MessageHeader::RecordBatch => self.decode(&head, body, limits).map(Some),
            MessageHeader::DictionaryBatch => {
                self.take_dictionary(&head, body, message.held.take(), limits).map(|()| None)
            }
            _ => Err(malformed(&"a message is neither a record batch nor a dictionary")),
        }
    }

    fn decode(&self, head: &Head, body: &Buffer, limits: &Limits) -> Result<RecordBatch, Problem> {
        let batch = head.header_as_record_batch().ok_or_else(|| malformed(&"a record batch is missing"))?;
        let rows_max = limits.batch_rows_max;
        if batch.length() > rows_max as i64 {
            let detail = format!(
                "a record batch may have {rows_max} rows; a stream any number of them (max_chunksize of pyarrow)"
            );
            return Err(Problem::new(Code::TooManyRows, detail));
        }
        check(&batch, body.len(), self.schema.fields().iter().map(|field| field.data_type()))?;
        RecordBatchDecoder::try_new(body, batch, self.schema.clone(), &self.dictionaries, &head.version())
            .and_then(RecordBatchDecoder::read_record_batch)
            .map_err(|error| malformed(&error))
    }

    fn take_dictionary(&mut self, head: &Head, body: &Buffer, held: Held, limits: &Limits) -> Result<(), Problem> {
        let dictionary = head.header_as_dictionary_batch().ok_or_else(|| malformed(&"a dictionary is missing"))?;
        let values = dictionary.data().ok_or_else(|| malformed(&"a dictionary has no values"))?;
        if dictionary.isDelta() {
            return Err(malformed(&"dictionaries that grow (deltas) are not read; send the whole dictionary again"));
        }
        let of_id = |field: &&FieldRef| {
            #[expect(deprecated, reason = "how the library itself finds the type of a dictionary")]
            let id = field.dict_id();
            id == Some(dictionary.id())
        };
        let types = self.schema.fields().iter().find(of_id).and_then(|field| match field.data_type() {
            DataType::Dictionary(_, values) => Some(&**values),
            _ => None,
        });
        check(&values, body.len(), types.into_iter())?;
        // Each replaces the one before.
        self.held.insert(dictionary.id(), (body.len(), held));
        let bytes_max = limits.batch_body_bytes_max;
        if self.held.values().map(|(bytes, _)| bytes).sum::<usize>() > bytes_max {
            return Err(Problem::new(Code::BodyTooLarge, format!("all dictionaries may have {bytes_max} bytes")));
        }
        // Refuses what is not in the schema.
        // Of a copy: what is kept must not hold on to the message that it came in, nor to what came before that.
        read_dictionary(
            &Buffer::from(body.as_slice()),
            dictionary,
            &self.schema,
            &mut self.dictionaries,
            &head.version(),
        )
        .map_err(|error| malformed(&error))
    }
}

/// The messages of a body.
pub(super) struct Messages(Incoming);

impl Messages {
    /// Those of a body.
    pub(super) fn new(incoming: Incoming) -> Self {
        Self(incoming)
    }

    /// The next whole message; `None` at the end of the stream, after which nothing may come. It has the time of a body to come, however
    /// often a part of it does.
    ///
    /// Errors: no such message; a message that is too large; a body that stalls or breaks off.
    pub(super) async fn next(&mut self, limits: &Limits) -> Result<Option<Message>, Problem> {
        timeout(limits.body_timeout(), self.read(limits)).await.unwrap_or_else(|_| {
            let wait_ms = limits.body_timeout().as_millis();
            Err(Problem::new(Code::RequestTimeout, format!("no whole message came for {wait_ms} ms")))
        })
    }

    async fn read(&mut self, limits: &Limits) -> Result<Option<Message>, Problem> {
        if !self.fill(PREFIX).await? {
            let rest = self.0.pending();
            let is_end = rest.is_empty() || rest == [0; 4];
            return if is_end { Ok(None) } else { Err(incomplete()) };
        }
        let prefix = self.0.pending();
        if prefix[..4] != MARKER {
            return Err(malformed(&"expected the marker of a message (Arrow 0.15 or newer)"));
        }
        let length = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]) as usize;
        if length == 0 {
            return match self.fill(PREFIX + 1).await? {
                true => Err(malformed(&"something stands behind its end")),
                false => Ok(None),
            };
        }
        if length > HEAD_BYTES_MAX {
            return Err(malformed(&format!("the head of a message may have {HEAD_BYTES_MAX} bytes")));
        }
        let head = PREFIX..PREFIX + length;
        if !self.fill(head.end).await? {
            return Err(incomplete());
        }
        let body_length = read(&self.0.pending()[head.clone()])?.bodyLength();
        let bytes_max = limits.batch_body_bytes_max;
        let Some(body_length) = usize::try_from(body_length).ok().filter(|length| *length <= bytes_max) else {
            return Err(Problem::new(Code::BodyTooLarge, format!("a record batch may have {bytes_max} bytes")));
        };
        if !self.fill(head.end + body_length).await? {
            return Err(incomplete());
        }
        let (message, held) = self.0.take(head.end + body_length).apart();
        let body = Buffer::from(message.slice(head.end..));
        Ok(Some(Message { head: message.slice(head), body, held }))
    }

    /// Reads until `length` bytes are there: whether they are.
    async fn fill(&mut self, length: usize) -> Result<bool, Problem> {
        while self.0.pending().len() < length {
            if !self.0.more().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A whole message.
pub(super) struct Message {
    head: Bytes,
    body: Buffer,
    /// What it counts for.
    held: Held,
}

/// Whether columns of this type are decoded.
pub(super) fn is_read(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => is_text(values),
        DataType::Boolean | DataType::Null => true,
        other => is_text(other) || is_number(other),
    }
}

/// Whether it is a type of texts.
pub(super) fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Whether it is a type of numbers.
pub(super) fn is_number(data_type: &DataType) -> bool {
    data_type.is_integer() || matches!(data_type, DataType::Float32 | DataType::Float64)
}

/// Why a body is no legal stream.
pub(super) fn malformed(why: &dyn std::fmt::Display) -> Problem {
    Problem::new(Code::MalformedArrow, why.to_string())
}

fn incomplete() -> Problem {
    Problem::new(Code::IncompleteBody, "the body ended in the middle of a message")
}

fn read(head: &[u8]) -> Result<Head<'_>, Problem> {
    arrow_ipc::root_as_message(head).map_err(|_| malformed(&"the head of a message cannot be read"))
}

/// The decoder believes what a batch says of its rows and of the places of its buffers, and panics where it is wrong. `types` are those
/// of its columns.
fn check<'t>(
    batch: &arrow_ipc::RecordBatch,
    body_length: usize,
    types: impl Iterator<Item = &'t DataType>,
) -> Result<(), Problem> {
    if batch.compression().is_some() {
        return Err(malformed(&"compressed buffers are not read; send the stream without compression"));
    }
    let rows = batch.length();
    let mut nodes = batch.nodes().into_iter().flatten();
    if rows < 0 || nodes.any(|node| node.length() != rows || !(0..=rows).contains(&node.null_count())) {
        return Err(malformed(&"a column has another number of rows than its record batch says"));
    }
    let is_inside = |buffer: &arrow_ipc::Buffer| {
        let place = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        place.and_then(|(offset, length)| offset.checked_add(length)).is_some_and(|end| end <= body_length)
    };
    if !batch.buffers().into_iter().flatten().all(is_inside) {
        return Err(malformed(&"a buffer is not inside its record batch"));
    }
    let mut buffers = batch.buffers().into_iter().flatten();
    let mut variadic = batch.variadicBufferCounts().into_iter().flatten();
    for data_type in types {
        let (width, more) = match data_type {
            DataType::Null => continue,
            DataType::Boolean => (1, 0),
            DataType::Utf8 => (4, 1),
            DataType::LargeUtf8 => (8, 1),
            DataType::Utf8View => (16, variadic.next().and_then(|count| usize::try_from(count).ok()).unwrap_or(0)),
            DataType::Dictionary(keys, _) => (keys.primitive_width().unwrap_or(1), 0),
            other => (other.primitive_width().unwrap_or(1), 0),
        };
        // Which rows are null, and then values, views or offsets: of these there has to be a whole number.
        let whole = buffers.nth(1).is_some_and(|buffer| buffer.length() % width as i64 == 0);
        if !whole || (more > 0 && buffers.nth(more - 1).is_none()) {
            return Err(malformed(&"a column has other buffers than its type says"));
        }
    }
    Ok(())
}
