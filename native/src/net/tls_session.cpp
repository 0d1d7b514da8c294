// Records between OpenSSL and the socket: a buffer of encrypted ones, so that many go with one
// call.
#include "net/tls_session.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/limits.h"
#include "net/socket.h"

namespace kvstore {
namespace {

constexpr size_t kRecordBytes = 16u << 10;  // of plain text in a record, at most
constexpr size_t kRecordOverhead = 64;      // of a record, more than there is
// Of a call's records; a small one at the end may come on top of kMostTogether.
constexpr size_t kBufferBytes = TlsSession::kMostTogether + kRecordBytes +
                                (TlsSession::kMostTogether / kRecordBytes + 2) * kRecordOverhead;
constexpr size_t kPlainAnswerBytes = 512;

// A buffer of encrypted bytes is needed until the socket has taken them, which mostly is at once:
// a thread's connections share one.
std::vector<uint8_t>& spare_buffer() {
    static thread_local std::vector<uint8_t> spare;
    return spare;
}

// A record begins with its type, 20 to 23, and the version's first byte (RFC 8446, 5.1).
bool begins_record(std::span<const uint8_t> bytes) {
    return bytes[0] >= 20 && bytes[0] <= 23 && (bytes.size() < 2 || bytes[1] == 3);
}

constexpr std::string_view kSpiffe = "spiffe://";

std::string spiffe_name(const openssl::Api& api, openssl::X509 certificate) {
    void* const names =
        api.X509_get_ext_d2i(certificate, openssl::kSubjectAltName, nullptr, nullptr);
    if (names == nullptr) {
        return {};
    }
    std::string found;
    for (int i = 0; i < api.OPENSSL_sk_num(names) && found.empty(); ++i) {
        int type = 0;
        const void* const value =
            api.GENERAL_NAME_get0_value(api.OPENSSL_sk_value(names, i), &type);
        if (type != openssl::kUri) {
            continue;
        }
        const std::string_view uri(reinterpret_cast<const char*>(api.ASN1_STRING_get0_data(value)),
                                   static_cast<size_t>(std::max(api.ASN1_STRING_length(value), 0)));
        const size_t slash = uri.rfind('/');
        if (uri.starts_with(kSpiffe) && slash >= kSpiffe.size()) {
            found = uri.substr(slash + 1);
        }
    }
    api.GENERAL_NAMES_free(names);
    return found;
}

std::string common_name(const openssl::Api& api, openssl::X509 certificate) {
    std::array<char, limits::kMaxNameBytes + 1> text{};
    const int size =
        api.X509_NAME_get_text_by_NID(api.X509_get_subject_name(certificate), openssl::kCommonName,
                                      text.data(), static_cast<int>(text.size()));
    // A zero byte in it would hide the remainder.
    return size > 0 && std::strlen(text.data()) == static_cast<size_t>(size) ? text.data() : "";
}

// Walks over parts; small ones are gathered into whole records.
class Records {
  public:
    explicit Records(std::span<const iovec> parts) : parts_(parts) { skip_empty(); }
    bool done() const { return at_ == parts_.size(); }
    // The next piece to encrypt: at most `most` bytes, straight from a part that fills a record.
    std::span<const uint8_t> next(size_t most, std::span<uint8_t> gathered) {
        const size_t whole = std::min(left(), most);
        if (whole >= kRecordBytes || at_ + 1 == parts_.size()) {
            const auto* from = static_cast<const uint8_t*>(parts_[at_].iov_base) + offset_;
            advance(whole);
            return {from, whole};
        }
        size_t size = 0;
        while (!done() && size < gathered.size()) {
            const size_t count = std::min(left(), gathered.size() - size);
            std::memcpy(gathered.data() + size,
                        static_cast<const uint8_t*>(parts_[at_].iov_base) + offset_, count);
            size += count;
            advance(count);
        }
        return gathered.first(size);
    }

  private:
    size_t left() const { return parts_[at_].iov_len - offset_; }
    void advance(size_t count) {
        offset_ += count;
        skip_empty();
    }
    void skip_empty() {
        while (!done() && left() == 0) {
            ++at_;
            offset_ = 0;
        }
    }

    std::span<const iovec> parts_;
    size_t at_ = 0;
    size_t offset_ = 0;
};

}  // namespace

// ---- between OpenSSL and the socket ----------------------------------------------------------

struct TlsSession::Bio {
    static openssl::Bio of(TlsSession* session) {
        static const openssl::BioMethod method = make_method(session->api_);
        const openssl::Bio bio = session->api_.BIO_new(method);
        KV_ASSERT(bio != nullptr);
        session->api_.BIO_set_data(bio, session);
        session->api_.BIO_set_init(bio, 1);
        return bio;
    }

  private:
    static openssl::BioMethod make_method(const openssl::Api& functions) {
        api = &functions;
        const openssl::BioMethod made = api->BIO_meth_new(openssl::kSourceSink, "kvstore socket");
        KV_ASSERT(made != nullptr && api->BIO_meth_set_read(made, &read) == 1 &&
                  api->BIO_meth_set_write(made, &write) == 1 &&
                  api->BIO_meth_set_ctrl(made, &control) == 1);
        return made;
    }
    static int read(openssl::Bio bio, char* to, int size) {
        auto* const session = static_cast<TlsSession*>(api->BIO_get_data(bio));
        session->mutex_.assert_held();  // OpenSSL is only called with it
        api->BIO_clear_flags(bio, openssl::kRetryAny);
        const int count = session->read_socket(
            {reinterpret_cast<uint8_t*>(to), static_cast<size_t>(std::max(size, 0))});
        if (count < 0 && session->error_ == 0) {
            api->BIO_set_flags(bio, openssl::kRetryRead);
        }
        return count;
    }
    static int write(openssl::Bio bio, const char* from, int size) {
        auto* const session = static_cast<TlsSession*>(api->BIO_get_data(bio));
        session->mutex_.assert_held();
        session->take_records(
            {reinterpret_cast<const uint8_t*>(from), static_cast<size_t>(std::max(size, 0))});
        return size;
    }
    static long control(openssl::Bio, int command, long, void*) {
        return command == openssl::kFlushBio ? 1 : 0;
    }

    static inline const openssl::Api* api = nullptr;
};

int TlsSession::read_socket(std::span<uint8_t> into) {
    ssize_t count = 0;
    if (!received_.empty()) {
        const size_t taken = std::min(received_.size(), into.size());
        std::memcpy(into.data(), received_.data(), taken);
        received_.erase(received_.begin(), received_.begin() + static_cast<ptrdiff_t>(taken));
        count = static_cast<ssize_t>(taken);
    } else {
        count = ::recv(fd_, into.data(), into.size(), MSG_DONTWAIT);
    }
    if (count == 0) {
        ended_ = true;
    } else if (count < 0 && errno != EAGAIN && errno != EINTR) {
        error_ = errno;
    } else if (count > 0 && !std::exchange(heard_, true)) {
        const auto first = into.first(static_cast<size_t>(count));
        if (!begins_record(first)) {
            const auto kept = first.first(std::min(first.size(), kPlainAnswerBytes));
            plain_answer_.assign(kept.begin(), kept.end());
        }
    }
    return static_cast<int>(count);
}

// Always takes all: what OpenSSL says by itself is bounded, and send() waits for its own.
void TlsSession::take_records(std::span<const uint8_t> bytes) {
    out_.insert(out_.end(), bytes.begin(), bytes.end());
}

bool TlsSession::flush_now() {
    while (sent_ < out_.size()) {
        const ssize_t count =
            ::send(fd_, out_.data() + sent_, out_.size() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count < 0 && errno != EINTR) {
            return false;
        }
        sent_ += static_cast<size_t>(std::max<ssize_t>(count, 0));
    }
    sent_ = 0;
    out_.clear();
    if (out_.capacity() != 0 && spare_buffer().capacity() < out_.capacity()) {
        out_.swap(spare_buffer());
    }
    std::vector<uint8_t>().swap(out_);
    return true;
}

// ---- what others call ------------------------------------------------------------------------

TlsSession::TlsSession(const OpenSsl& library, openssl::Ssl ssl, int fd, Side side,
                       std::span<const uint8_t> received)
    : library_(library),
      api_(library.api()),
      fd_(fd),
      side_(side),
      ssl_(ssl),
      received_(received.begin(), received.end()) {
    const openssl::Bio bio = Bio::of(this);
    api_.SSL_set_bio(ssl_, bio, bio);
    side == Side::kServer ? api_.SSL_set_accept_state(ssl_) : api_.SSL_set_connect_state(ssl_);
}

TlsSession::~TlsSession() { api_.SSL_free(ssl_); }

Status TlsSession::shake_hands(Deadline deadline) {
    while (true) {
        short wanted = POLLIN;
        {
            const MutexLock lock(mutex_);
            api_.ERR_clear_error();
            const int result = api_.SSL_do_handshake(ssl_);
            const ssize_t outcome = result == 1 ? 1 : failed(result);
            const int error = errno;
            if (!flush_now()) {
                wanted = POLLIN | POLLOUT;
            } else if (outcome == 1) {
                dry_ = false;
                return {};
            }
            if (outcome == 0 || (outcome < 0 && error != EAGAIN && error != EPROTO)) {
                return {Code::kClosed, "the peer has closed the connection"};
            }
            if (outcome < 0 && error == EPROTO) {
                return {Code::kUnauthenticated, problem_};
            }
        }
        if (Status status = wait_ready(fd_, wanted, deadline); !status.ok()) {
            return {status.code(), "the TLS handshake"};
        }
    }
}

ssize_t TlsSession::send(std::span<const iovec> parts, bool more) {
    const MutexLock lock(mutex_);
    if (!flush_now()) {
        return -1;
    }
    spare_buffer().swap(out_);
    out_.clear();
    out_.reserve(kBufferBytes);
    std::array<uint8_t, kRecordBytes> gathered;
    Records records(parts);
    size_t taken = 0;
    while (!records.done() && taken < kMostTogether) {
        const std::span<const uint8_t> next =
            records.next(std::max(kMostTogether - taken, kRecordBytes), gathered);
        if (!encrypt(next)) {
            return -1;
        }
        taken += next.size();
    }
    if (!more && !flush_now() && errno != EAGAIN) {
        return -1;
    }
    return static_cast<ssize_t>(taken);
}

bool TlsSession::encrypt(std::span<const uint8_t> bytes) {
    size_t count = 0;
    api_.ERR_clear_error();
    const int result = api_.SSL_write_ex(ssl_, bytes.data(), bytes.size(), &count);
    if (result == 1 && count == bytes.size()) {
        return true;
    }
    // Neither may be, after a handshake.
    if (failed(result) == 0 || errno == EAGAIN) {
        errno = EPIPE;
    }
    return false;
}

int TlsSession::flush() {
    const MutexLock lock(mutex_);
    return flush_now() ? 0 : -1;
}

bool TlsSession::has_unsent() const {
    const MutexLock lock(mutex_);
    return !out_.empty();
}

ssize_t TlsSession::receive(std::span<const iovec> into) {
    const MutexLock lock(mutex_);
    size_t taken = 0;
    for (const iovec& part : into) {
        for (size_t offset = 0; offset < part.iov_len && taken < kMostTogether;) {
            size_t count = 0;
            api_.ERR_clear_error();
            const int result = api_.SSL_read_ex(ssl_, static_cast<uint8_t*>(part.iov_base) + offset,
                                                part.iov_len - offset, &count);
            if (result != 1) {
                const ssize_t outcome = failed(result);
                const int error = errno;
                (void)flush_now();  // an alert, or the server's part of the handshake
                errno = error;
                return taken != 0 ? static_cast<ssize_t>(taken) : outcome;
            }
            dry_ = false;
            offset += count;
            taken += count;
        }
    }
    return static_cast<ssize_t>(taken);
}

// What is wrong stays so: whoever has received something before it meets it with the next call.
ssize_t TlsSession::failed(int result) {
    const int kind = api_.SSL_get_error(ssl_, result);
    if (kind == openssl::kWantRead || kind == openssl::kWantWrite) {
        dry_ = true;
        errno = EAGAIN;
        return -1;
    }
    if (kind == openssl::kZeroReturn || (ended_ && problem_.empty())) {
        return 0;
    }
    if (error_ != 0) {
        errno = error_;
        return -1;
    }
    if (problem_.empty()) {
        problem_ = describe();
    }
    errno = EPROTO;
    return -1;
}

std::string TlsSession::describe() const {
    const std::string reason = library_.take_error();
    const long verified = api_.SSL_get_verify_result(ssl_);
    if (verified == 0) {
        return "TLS: " + reason;
    }
    const char* const whose = side_ == Side::kServer ? "client" : "server";
    return std::string("TLS: the ") + whose +
           "'s certificate is refused: " + api_.X509_verify_cert_error_string(verified);
}

bool TlsSession::has_unread() const {
    const MutexLock lock(mutex_);
    return !problem_.empty() || !received_.empty() || (!dry_ && api_.SSL_has_pending(ssl_) == 1);
}

std::string TlsSession::problem() const {
    const MutexLock lock(mutex_);
    return problem_;
}

std::string TlsSession::peer_name() const {
    const MutexLock lock(mutex_);
    const openssl::X509 certificate = api_.SSL_get1_peer_certificate(ssl_);
    if (certificate == nullptr) {
        return {};
    }
    std::string name;
    if (api_.SSL_get_verify_result(ssl_) == 0) {
        name = spiffe_name(api_, certificate);
        name = name.empty() ? common_name(api_, certificate) : name;
    }
    api_.X509_free(certificate);
    return name;
}

std::vector<uint8_t> TlsSession::plain_answer() const {
    const MutexLock lock(mutex_);
    return plain_answer_;
}

}  // namespace kvstore
