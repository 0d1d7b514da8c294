// Certificates of a process, and the TLS sessions that are made with them: TLS 1.3 alone.
//
// A certificate may be replaced while sessions are open; they go on, and new ones take it.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "base/mutex.h"
#include "base/status.h"
#include "net/tls_session.h"

namespace kvstore {

enum class ClientAuth : uint8_t { kNone = 0, kOptional = 1, kRequired = 2 };

// Files in PEM. A server has all three, a client at least `ca`.
struct TlsSettings {
    std::string cert;  // the certificate, then those between it and the authority's
    std::string key;   // of the certificate, without a password
    std::string ca;    // the authorities that peers' certificates are from
    ClientAuth client_auth = ClientAuth::kNone;
    bool required = true;  // false: peers without TLS are served, and called, without
    bool follow = false;   // look for changed files before each connection, at most every second
};

// Thread-safe.
class Tls {
  public:
    // Reads the files; kInvalidArgument says which one is wrong, kUnsupported that there is no
    // OpenSSL.
    static Result<std::shared_ptr<Tls>> load(const TlsSettings& settings);
    ~Tls();

    // Takes over what `other` has read, for new sessions.
    void replace(const Tls& other) KV_EXCLUDES(mutex_);
    bool required() const KV_EXCLUDES(mutex_);
    // When the certificate expires, from now; 0 without one, negative when it has.
    int64_t expires_in_s() const KV_EXCLUDES(mutex_);

    // The server's side of a connection whose first bytes are a TLS record's.
    static bool is_hello(std::span<const uint8_t> first);
    static constexpr size_t kHelloBytes = 3;  // that is_hello() needs
    Result<std::unique_ptr<TlsSession>> accept(int fd, std::span<const uint8_t> received) const
        KV_EXCLUDES(mutex_);
    // The client's, with the handshake: the server's certificate has to be valid for `host`, a name
    // or an address. `*is_plain`: refused because the server speaks no TLS.
    Result<std::unique_ptr<TlsSession>> connect(int fd, const std::string& host, Deadline deadline,
                                                bool* is_plain) const KV_EXCLUDES(mutex_);

  private:
    struct Loaded;
    explicit Tls(std::shared_ptr<const Loaded> loaded) : loaded_(std::move(loaded)) {}
    static Result<std::shared_ptr<const Loaded>> read(const TlsSettings& settings);
    std::shared_ptr<const Loaded> current() const KV_EXCLUDES(mutex_);
    std::shared_ptr<const Loaded> followed() const KV_EXCLUDES(mutex_);

    mutable Mutex mutex_;
    mutable std::shared_ptr<const Loaded> loaded_ KV_GUARDED_BY(mutex_);
    mutable uint64_t looked_ms_ KV_GUARDED_BY(mutex_) = 0;
    mutable std::string refused_ KV_GUARDED_BY(mutex_);  // stamp of files that could not be read
};

}  // namespace kvstore
