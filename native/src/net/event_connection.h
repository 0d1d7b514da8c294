// One connection of the event server, as its loop's thread sees it: the handshake, the cutting of
// the stream into frames, payload on its way into the service's memory. Private to the event
// server.
#pragma once

#include "net/event_outbox.h"

namespace kvstore {

inline constexpr size_t kInputBytes = 16 * 1024;  // of a session; frames may need more

class EventConnection final : public Connection {
  public:
    // `scratch` is the loop's: where discarded bytes go.
    EventConnection(std::shared_ptr<Outbox> outbox, Peer peer, size_t loop, ServerState& state,
                    ConnectionHandler& service, std::span<uint8_t> scratch);

    const Peer& peer() const override { return peer_; }
    const std::shared_ptr<ConnectionRef>& ref() const override { return ref_; }
    size_t loop() const override { return loop_; }
    void fail(Code code, std::string_view reason) override;

    Outbox& outbox() { return *outbox_; }
    void start_adopted(std::shared_ptr<void> adopted_session);
    // After the principals were replaced: fails a session whose principal is not what it was.
    void authenticate_again();
    // What a list of sessions says of it; nothing before its Welcome.
    std::optional<SessionView> view(uint64_t now_ms) const;
    void on_event(uint32_t events);
    // Ends the session when somebody asked the outbox for it. Called after everything that runs
    // code of the service, so that on_close never comes from within another callback.
    void settle();
    void tick(uint64_t now_ms);
    // Ends it without a word, if it has no session yet.
    void evict(std::string_view reason);
    bool finished() const { return phase_ == Phase::kFinished; }

  private:
    // How far the session is; each arrow is one call of enter().
    //
    //   kHello ── Challenge sent ──► kAuth ── proof checked ──► kWelcoming ── Welcome sent ──►
    //   kOpen
    //      └───────────────────── without tokens ──────────────────▲
    //   any of these ── the outbox has an ending ──► kDraining ── nothing more to send or hear ──►
    //   kFinished
    //
    // In kHello, kAuth and kWelcoming an ending is told by Refused, in kOpen by Error. A session
    // exists in kWelcoming and kOpen: leaving them for kDraining calls on_close. kDraining sends
    // the last frame and discards what arrives, until the peer closes, the socket breaks or
    // kLingerMs pass; an ending "at once" passes straight through it. An adopted socket goes from
    // kHello to kOpen.
    enum class Phase : uint8_t { kHello, kAuth, kWelcoming, kOpen, kDraining, kFinished };
    // What the next byte of the stream belongs to: kHeader → kBody → (kPayload →) kHeader. Only
    // kOpen has payloads.
    enum class Part : uint8_t { kHeader, kBody, kPayload };
    struct Handshake {
        std::vector<uint8_t> hello_body;
        std::vector<uint8_t> challenge_body;
        Hello hello;  // views hello_body
    };

    void read();
    void stop_reading();
    bool consume();
    bool begin_stream();
    bool take_header();
    void dispatch(std::span<const uint8_t> body);
    ssize_t read_input(bool* more);
    ssize_t read_payload(bool* more);
    void take_buffered_payload();
    void begin_payload(PayloadPlan plan);
    void finish_payload();
    void peer_ended();
    void drain_input();

    void on_hello(std::span<const uint8_t> body);
    Status check_hello(const Hello& hello) const;
    Status check_user() const;
    void admit_certificate();
    void challenge();
    Status may_prove() const;
    void on_auth(std::span<const uint8_t> body);
    void open_session(const Digest& proof);
    bool send_welcome(HelloAnswer* answer, const Digest& proof);
    void on_frame(std::span<const uint8_t> body);
    bool is_granted(std::span<const uint8_t> body);
    void enter(Phase phase) { phase_ = phase; }
    bool in_frame() const { return next_part_ != Part::kHeader || buffered() != 0; }
    uint64_t offered_features() const;
    size_t buffered() const { return end_ - begin_; }

    const std::shared_ptr<Outbox> outbox_;
    const std::shared_ptr<ConnectionRef> ref_;
    Peer peer_;
    const size_t loop_;
    ServerState& state_;
    ConnectionHandler& service_;
    const std::span<uint8_t> scratch_;

    Phase phase_ = Phase::kHello;
    Part next_part_ = Part::kHeader;
    bool begun_ = false;     // plain or TLS: known from the first bytes
    bool admitted_ = false;  // counted as a session, no longer as half-open
    bool moved_ = false;     // bytes came in since the last tick
    uint64_t since_ms_;      // start of the phase, or of the silence in the middle of a frame
    std::unique_ptr<Handshake> handshake_;
    Credential credential_;    // null: not authenticated
    uint64_t expires_ms_ = 0;  // of the minted token that it came with; 0: never
    bool is_adopted_ = false;  // we have connected to it
    uint64_t opened_ms_ = 0;   // start of the session
    uint64_t requests_ = 0;    // that want an answer

    std::vector<uint8_t> input_;  // [begin_, end_) is received and not yet consumed
    size_t begin_ = 0;
    size_t end_ = 0;
    FrameHeader header_;

    uint64_t payload_left_ = 0;      // of header_
    bool denied_ = false;            // the service knows nothing of this frame
    std::span<const uint8_t> body_;  // of the frame whose payload is being received
    PayloadPlan plan_;
    TransferCursor transfer_;  // over the plan's parts
};

}  // namespace kvstore
