//! Just enough of the Redis protocol (RESP 2) to read the commands out of a byte stream.
//! It never answers and never keeps more than one unfinished command.

/// Splits a client's byte stream into commands, whatever the packets it comes in.
#[derive(Debug, Default)]
pub struct CommandReader {
    buffer: Vec<u8>,
}

impl CommandReader {
    /// Adds bytes and takes out every command they complete, arguments as lossy text.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Vec<String>> {
        self.buffer.extend_from_slice(bytes);
        let mut commands = Vec::new();
        let mut consumed = 0;
        while let Some((command, length)) = parse(&self.buffer[consumed..]) {
            consumed += length;
            if !command.is_empty() {
                commands.push(command);
            }
        }
        self.buffer.drain(..consumed);
        commands
    }
}

/// One command and the bytes it takes, or `None` when it is not complete yet.
fn parse(bytes: &[u8]) -> Option<(Vec<String>, usize)> {
    let (line, mut position) = line(bytes, 0)?;
    let Some(count) = line.strip_prefix('*') else {
        // An inline command, as typed into a terminal.
        return Some((line.split_whitespace().map(str::to_owned).collect(), position));
    };
    let count: usize = count.parse().unwrap_or(0);
    let mut arguments = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        let (header, after) = self::line(bytes, position)?;
        let length: usize = header.strip_prefix('$')?.parse().ok()?;
        let argument = bytes.get(after..after + length)?;
        bytes.get(after + length..after + length + 2)?;
        arguments.push(String::from_utf8_lossy(argument).into_owned());
        position = after + length + 2;
    }
    Some((arguments, position))
}

fn line(bytes: &[u8], from: usize) -> Option<(String, usize)> {
    let end = bytes.get(from..)?.windows(2).position(|pair| pair == b"\r\n")?;
    Some((String::from_utf8_lossy(&bytes[from..from + end]).into_owned(), from + end + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_however_the_bytes_are_cut() {
        let stream = b"*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$4\r\n\r\n*1\r\nECHO x\r\n";
        for cut in 0..stream.len() {
            let mut reader = CommandReader::default();
            let mut commands = reader.feed(&stream[..cut]);
            commands.extend(reader.feed(&stream[cut..]));
            assert_eq!(
                commands,
                [vec!["PING"], vec!["SET", "a", "\r\n*1"], vec!["ECHO", "x"]],
                "cut at {cut}"
            );
        }
    }
}
