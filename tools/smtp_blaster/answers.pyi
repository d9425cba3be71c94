class ImapAnswers:
    octets: int  # all that came
    fetched: int  # FETCH responses
    def feed(self, data: bytes) -> list[bytes]: ...
