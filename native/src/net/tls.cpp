// Contexts of OpenSSL from files, and sessions from contexts.
#include "net/tls.h"

#include <arpa/inet.h>
#include <sys/stat.h>

#include <utility>

#include "base/clock.h"
#include "net/handshake.h"

namespace kvstore {
namespace {

using openssl::Ctx;

constexpr uint64_t kLookMs = 1000;
// Four records come with one call of the socket.
constexpr size_t kReadBytes = 68u << 10;
// The first one is the fastest where the processor has AES; all three are sound.
constexpr const char* kCiphers =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

int no_password(char*, int, int, void*) { return 0; }  // else OpenSSL would ask on the terminal

// Changes with the content of the files, however they are replaced.
std::string stamp_of(const TlsSettings& settings) {
    std::string stamp;
    for (const std::string* file : {&settings.cert, &settings.key, &settings.ca}) {
        struct stat found{};
        if (stat(file->c_str(), &found) == 0) {
            for (const auto number : {static_cast<int64_t>(found.st_ino), found.st_size,
                                      found.st_mtim.tv_sec, found.st_mtim.tv_nsec}) {
                stamp += std::to_string(number) + " ";
            }
        }
        stamp += "; ";
    }
    return stamp;
}

bool is_address(const std::string& host) {
    in6_addr address{};
    return inet_pton(AF_INET, host.c_str(), &address) == 1 ||
           inet_pton(AF_INET6, host.c_str(), &address) == 1;
}

// A server that is full refuses before it reads; others do not know TLS. What they say has not been
// authenticated: it decides nothing but whether to try again.
Status plain_refusal(std::span<const uint8_t> answer, const std::string& host) {
    std::string said;
    FrameHeader header;
    Refused refused;
    if (answer.size() >= kFrameHeaderBytes &&
        decode_handshake_header(answer.first<kFrameHeaderBytes>(), &header).ok() &&
        header.message() == MessageType::kRefused &&
        answer.size() - kFrameHeaderBytes >= header.body_bytes &&
        decode_message(answer.subspan(kFrameHeaderBytes, header.body_bytes), &refused).ok()) {
        const Status told = remote_status(refused.code, refused.message);
        if (told.code() == Code::kOverloaded) {
            return told;
        }
        said = " (" + told.message() + ")";
    }
    return {Code::kUnauthenticated, host + " speaks no TLS" + said +
                                        "; a client with tls does without it nowhere: set tls "
                                        "there"};
}

}  // namespace

struct Tls::Loaded {
    Loaded(const OpenSsl* from, const TlsSettings& given)
        : library(from), settings(given), stamp(stamp_of(given)) {}
    ~Loaded() {
        for (const Ctx ctx : {server, client}) {
            if (ctx != nullptr) {
                library->api().SSL_CTX_free(ctx);
            }
        }
    }
    Loaded(const Loaded&) = delete;
    Loaded& operator=(const Loaded&) = delete;

    Result<Ctx> make(int verify) const;
    Status read_files(Ctx ctx) const;
    Status wrong(const char* key, const std::string& file) const {
        return {Code::kInvalidArgument,
                std::string("tls: ") + key + " " + file + ": " + library->take_error()};
    }

    const OpenSsl* const library;
    const TlsSettings settings;
    const std::string stamp;
    Ctx server = nullptr;  // null without a certificate
    Ctx client = nullptr;
};

Result<Ctx> Tls::Loaded::make(int verify) const {
    const openssl::Api& api = library->api();
    api.ERR_clear_error();
    const Ctx ctx = api.SSL_CTX_new(api.TLS_method());
    if (ctx == nullptr ||
        api.SSL_CTX_ctrl(ctx, openssl::kSetMinVersion, openssl::kTls13, nullptr) != 1 ||
        api.SSL_CTX_set_ciphersuites(ctx, kCiphers) != 1) {
        api.SSL_CTX_free(ctx);
        return {Code::kUnsupported, "this OpenSSL has no TLS 1.3: " + library->take_error()};
    }
    // Nothing is resumed: connections last, and a ticket would be one more secret.
    api.SSL_CTX_set_options(ctx, openssl::kNoTicket);
    static_cast<void>(api.SSL_CTX_set_num_tickets(ctx, 0));
    api.SSL_CTX_ctrl(ctx, openssl::kSetSessionCache, openssl::kNoSessionCache, nullptr);
    api.SSL_CTX_ctrl(ctx, openssl::kSetMode, openssl::kReleaseBuffers, nullptr);
    api.SSL_CTX_ctrl(ctx, openssl::kSetReadAhead, 1, nullptr);
    api.SSL_CTX_set_default_read_buffer_len(ctx, kReadBytes);
    api.SSL_CTX_set_default_passwd_cb(ctx, &no_password);
    api.SSL_CTX_set_verify(ctx, verify, nullptr);
    if (Status status = read_files(ctx); !status.ok()) {
        api.SSL_CTX_free(ctx);
        return status;
    }
    return ctx;
}

Status Tls::Loaded::read_files(Ctx ctx) const {
    const openssl::Api& api = library->api();
    if (!settings.cert.empty()) {
        if (api.SSL_CTX_use_certificate_chain_file(ctx, settings.cert.c_str()) != 1) {
            return wrong("cert", settings.cert);
        }
        if (api.SSL_CTX_use_PrivateKey_file(ctx, settings.key.c_str(), openssl::kPem) != 1 ||
            api.SSL_CTX_check_private_key(ctx) != 1) {
            return wrong("key", settings.key);
        }
    }
    const bool read = api.SSL_CTX_load_verify_locations(ctx, settings.ca.c_str(), nullptr) == 1;
    return read ? Status() : wrong("ca", settings.ca);
}

Result<std::shared_ptr<const Tls::Loaded>> Tls::read(const TlsSettings& settings) {
    if (settings.ca.empty() || settings.cert.empty() != settings.key.empty()) {
        return {Code::kInvalidArgument, "tls: ca is needed, and cert and key only together"};
    }
    const Result<const OpenSsl*> library = OpenSsl::load();
    if (!library.ok()) {
        return library.status();
    }
    auto loaded = std::make_shared<Loaded>(*library, settings);
    const Result<Ctx> client = loaded->make(openssl::kVerifyPeer);
    if (!client.ok()) {
        return client.status();
    }
    loaded->client = *client;
    if (!settings.cert.empty()) {
        const int verify = settings.client_auth == ClientAuth::kNone ? openssl::kVerifyNone
                           : settings.client_auth == ClientAuth::kOptional
                               ? openssl::kVerifyPeer
                               : openssl::kVerifyPeer | openssl::kFailWithoutPeer;
        const Result<Ctx> server = loaded->make(verify);
        if (!server.ok()) {
            return server.status();
        }
        loaded->server = *server;
    }
    return std::shared_ptr<const Loaded>(std::move(loaded));
}

Result<std::shared_ptr<Tls>> Tls::load(const TlsSettings& settings) {
    Result<std::shared_ptr<const Loaded>> loaded = read(settings);
    if (!loaded.ok()) {
        return loaded.status();
    }
    return std::shared_ptr<Tls>(new Tls(std::move(*loaded)));
}

Tls::~Tls() = default;

std::shared_ptr<const Tls::Loaded> Tls::current() const {
    const MutexLock lock(mutex_);
    return loaded_;
}

// Files that cannot be read leave what there is: they may be replaced one after the other.
std::shared_ptr<const Tls::Loaded> Tls::followed() const {
    std::shared_ptr<const Loaded> before;
    {
        const MutexLock lock(mutex_);
        const uint64_t now_ms = boottime_ms();
        if (!loaded_->settings.follow || now_ms < looked_ms_ + kLookMs) {
            return loaded_;
        }
        looked_ms_ = now_ms;
        before = loaded_;
    }
    std::string stamp = stamp_of(before->settings);
    {
        const MutexLock lock(mutex_);
        if (stamp == before->stamp || stamp == refused_) {
            return loaded_;
        }
    }
    const Result<std::shared_ptr<const Loaded>> fresh = read(before->settings);
    const MutexLock lock(mutex_);
    if (fresh.ok()) {
        loaded_ = *fresh;
    } else {
        refused_ = std::move(stamp);
    }
    return loaded_;
}

void Tls::replace(const Tls& other) {
    std::shared_ptr<const Loaded> loaded = other.current();
    const MutexLock lock(mutex_);
    loaded_.swap(loaded);
}

bool Tls::required() const { return current()->settings.required; }

int64_t Tls::expires_in_s() const {
    const std::shared_ptr<const Loaded> loaded = current();
    const openssl::Api& api = loaded->library->api();
    const openssl::X509 certificate = api.SSL_CTX_get0_certificate(loaded->client);
    int days = 0;
    int seconds = 0;
    if (certificate == nullptr ||
        api.ASN1_TIME_diff(&days, &seconds, nullptr, api.X509_get0_notAfter(certificate)) != 1) {
        return 0;
    }
    return int64_t{days} * 86'400 + seconds;
}

// A frame has a zero there: no handshake has a body of 64 KiB.
bool Tls::is_hello(std::span<const uint8_t> first) {
    return first.size() >= kHelloBytes && first[0] == 0x16 && first[1] == 0x03 && first[2] != 0;
}

Result<std::unique_ptr<TlsSession>> Tls::accept(int fd, std::span<const uint8_t> received) const {
    const std::shared_ptr<const Loaded> loaded = current();
    const openssl::Ssl ssl =
        loaded->server == nullptr ? nullptr : loaded->library->api().SSL_new(loaded->server);
    if (ssl == nullptr) {
        return {Code::kUnsupported, "no certificate to serve with"};
    }
    return std::make_unique<TlsSession>(*loaded->library, ssl, fd, TlsSession::Side::kServer,
                                        received);
}

Result<std::unique_ptr<TlsSession>> Tls::connect(int fd, const std::string& host, Deadline deadline,
                                                 bool* is_plain) const {
    *is_plain = false;
    const std::shared_ptr<const Loaded> loaded = followed();
    const openssl::Api& api = loaded->library->api();
    const openssl::Ssl ssl = api.SSL_new(loaded->client);
    if (ssl == nullptr) {
        return {Code::kInternal, "OpenSSL has no memory for a session"};
    }
    auto session =
        std::make_unique<TlsSession>(*loaded->library, ssl, fd, TlsSession::Side::kClient);
    api.SSL_set_hostflags(ssl, openssl::kNoPartialWildcards | openssl::kNeverSubject);
    bool named = false;
    if (is_address(host)) {
        named = api.X509_VERIFY_PARAM_set1_ip_asc(api.SSL_get0_param(ssl), host.c_str()) == 1;
    } else {
        std::string name = host;
        named = api.SSL_set1_host(ssl, name.c_str()) == 1 &&
                api.SSL_ctrl(ssl, openssl::kSetServerName, openssl::kHostName, name.data()) == 1;
    }
    if (!named) {
        return {Code::kInvalidArgument, "no certificate can be for the name " + host};
    }
    Status status = session->shake_hands(deadline);
    if (status.ok()) {
        return session;
    }
    const std::vector<uint8_t> plain = session->plain_answer();
    if (!plain.empty()) {
        *is_plain = true;
        return plain_refusal(plain, host);
    }
    return Status(status.code(), status.message() + " (" + host + ")");
}

}  // namespace kvstore
