// The system's OpenSSL by dlopen, only where TLS is configured: nothing of it is needed to build or
// to import. What is used is declared anew; each number names the macro and the header that it is
// from. OpenSSL keeps them within a major version, and 1.1.1 has the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"

namespace kvstore {

namespace openssl {

using Ctx = struct ContextOfOpenSsl*;  // SSL_CTX*
using Ssl = struct SslOfOpenSsl*;      // SSL*
using Bio = struct BioOfOpenSsl*;
using BioMethod = struct BioMethodOfOpenSsl*;
using X509 = struct X509OfOpenSsl*;
using Time = const struct TimeOfOpenSsl*;  // ASN1_TIME*

inline constexpr int kTls13 = 0x0304;            // TLS1_3_VERSION, tls1.h (3.0: prov_ssl.h)
inline constexpr int kSetMode = 33;              // SSL_CTRL_MODE, ssl.h
inline constexpr int kSetReadAhead = 41;         // SSL_CTRL_SET_READ_AHEAD, ssl.h
inline constexpr int kSetSessionCache = 44;      // SSL_CTRL_SET_SESS_CACHE_MODE, ssl.h
inline constexpr int kSetServerName = 55;        // SSL_CTRL_SET_TLSEXT_HOSTNAME, ssl.h
inline constexpr int kSetMinVersion = 123;       // SSL_CTRL_SET_MIN_PROTO_VERSION, ssl.h
inline constexpr long kHostName = 0;             // TLSEXT_NAMETYPE_host_name, tls1.h
inline constexpr long kNoSessionCache = 0;       // SSL_SESS_CACHE_OFF, ssl.h
inline constexpr long kReleaseBuffers = 0x10;    // SSL_MODE_RELEASE_BUFFERS, ssl.h
inline constexpr uint64_t kNoTicket = 1u << 14;  // SSL_OP_NO_TICKET, ssl.h
inline constexpr int kVerifyNone = 0;            // SSL_VERIFY_NONE, ssl.h
inline constexpr int kVerifyPeer = 1;            // SSL_VERIFY_PEER, ssl.h
inline constexpr int kFailWithoutPeer = 2;       // SSL_VERIFY_FAIL_IF_NO_PEER_CERT, ssl.h
inline constexpr int kPem = 1;                   // SSL_FILETYPE_PEM, ssl.h
inline constexpr int kWantRead = 2;              // SSL_ERROR_WANT_READ, ssl.h
inline constexpr int kWantWrite = 3;             // SSL_ERROR_WANT_WRITE, ssl.h
inline constexpr int kZeroReturn = 6;            // SSL_ERROR_ZERO_RETURN, ssl.h
inline constexpr unsigned kNoPartialWildcards =
    4;                                           // X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, x509v3.h
inline constexpr unsigned kNeverSubject = 0x20;  // X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, x509v3.h
inline constexpr int kSourceSink = 0x0400;       // BIO_TYPE_SOURCE_SINK, bio.h
inline constexpr int kFlushBio = 11;             // BIO_CTRL_FLUSH, bio.h
inline constexpr int kRetryRead = 0x01 | 0x08;   // BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY, bio.h
inline constexpr int kRetryWrite = 0x02 | 0x08;  // BIO_FLAGS_WRITE | BIO_FLAGS_SHOULD_RETRY
inline constexpr int kRetryAny = 0x01 | 0x02 | 0x04 | 0x08;  // … and BIO_FLAGS_IO_SPECIAL
inline constexpr int kSubjectAltName = 85;                   // NID_subject_alt_name, obj_mac.h
inline constexpr int kCommonName = 13;                       // NID_commonName, obj_mac.h
inline constexpr int kUri = 6;                               // GEN_URI, x509v3.h

using BioWrite = int (*)(Bio, const char*, int);
using BioRead = int (*)(Bio, char*, int);
using BioControl = long (*)(Bio, int, long, void*);
using Password = int (*)(char*, int, int, void*);

// The functions, under their names.
struct Api {
    const void* (*TLS_method)();
    Ctx (*SSL_CTX_new)(const void* method);
    void (*SSL_CTX_free)(Ctx ctx);
    long (*SSL_CTX_ctrl)(Ctx ctx, int command, long number, void* pointer);
    uint64_t (*SSL_CTX_set_options)(Ctx ctx, uint64_t options);
    int (*SSL_CTX_set_ciphersuites)(Ctx ctx, const char* names);
    int (*SSL_CTX_set_num_tickets)(Ctx ctx, size_t count);
    void (*SSL_CTX_set_default_read_buffer_len)(Ctx ctx, size_t size);
    void (*SSL_CTX_set_default_passwd_cb)(Ctx ctx, Password password);
    int (*SSL_CTX_use_certificate_chain_file)(Ctx ctx, const char* file);
    int (*SSL_CTX_use_PrivateKey_file)(Ctx ctx, const char* file, int type);
    int (*SSL_CTX_check_private_key)(Ctx ctx);
    int (*SSL_CTX_load_verify_locations)(Ctx ctx, const char* file, const char* folder);
    void (*SSL_CTX_set_verify)(Ctx ctx, int mode, void* callback);
    X509 (*SSL_CTX_get0_certificate)(Ctx ctx);
    Ssl (*SSL_new)(Ctx ctx);
    void (*SSL_free)(Ssl ssl);
    void (*SSL_set_bio)(Ssl ssl, Bio read, Bio write);
    void (*SSL_set_connect_state)(Ssl ssl);
    void (*SSL_set_accept_state)(Ssl ssl);
    int (*SSL_do_handshake)(Ssl ssl);
    int (*SSL_read_ex)(Ssl ssl, void* to, size_t size, size_t* count);
    int (*SSL_write_ex)(Ssl ssl, const void* from, size_t size, size_t* count);
    int (*SSL_get_error)(Ssl ssl, int result);
    int (*SSL_has_pending)(Ssl ssl);
    long (*SSL_ctrl)(Ssl ssl, int command, long number, void* pointer);
    int (*SSL_set1_host)(Ssl ssl, const char* name);
    void (*SSL_set_hostflags)(Ssl ssl, unsigned flags);
    void* (*SSL_get0_param)(Ssl ssl);
    long (*SSL_get_verify_result)(Ssl ssl);
    X509 (*SSL_get1_peer_certificate)(Ssl ssl);  // SSL_get_peer_certificate in 1.1.1
    int (*X509_VERIFY_PARAM_set1_ip_asc)(void* param, const char* address);
    const char* (*X509_verify_cert_error_string)(long result);
    void (*X509_free)(X509 certificate);
    Time (*X509_get0_notAfter)(X509 certificate);
    void* (*X509_get_ext_d2i)(X509 certificate, int nid, int* critical, int* index);
    void* (*X509_get_subject_name)(X509 certificate);
    int (*X509_NAME_get_text_by_NID)(void* name, int nid, char* to, int size);
    void* (*GENERAL_NAME_get0_value)(void* name, int* type);
    void (*GENERAL_NAMES_free)(void* names);
    int (*OPENSSL_sk_num)(const void* stack);
    void* (*OPENSSL_sk_value)(const void* stack, int index);
    const unsigned char* (*ASN1_STRING_get0_data)(const void* text);
    int (*ASN1_STRING_length)(const void* text);
    int (*ASN1_TIME_diff)(int* days, int* seconds, Time from, Time to);
    BioMethod (*BIO_meth_new)(int type, const char* name);
    int (*BIO_meth_set_write)(BioMethod method, BioWrite write);
    int (*BIO_meth_set_read)(BioMethod method, BioRead read);
    int (*BIO_meth_set_ctrl)(BioMethod method, BioControl control);
    Bio (*BIO_new)(BioMethod method);
    void (*BIO_set_data)(Bio bio, void* data);
    void* (*BIO_get_data)(Bio bio);
    void (*BIO_set_init)(Bio bio, int init);
    void (*BIO_set_flags)(Bio bio, int flags);
    void (*BIO_clear_flags)(Bio bio, int flags);
    void (*ERR_clear_error)();
    unsigned long (*ERR_get_error)();
    const char* (*ERR_reason_error_string)(unsigned long error);
};

}  // namespace openssl

class OpenSsl {
  public:
    // Loads the library once for the process; kUnsupported without it.
    static Result<const OpenSsl*> load();

    const openssl::Api& api() const { return api_; }
    // Takes the calling thread's oldest error as a phrase, and forgets the others.
    std::string take_error() const;

  private:
    OpenSsl() = default;
    Status find_functions(void* library, const std::string& name);

    openssl::Api api_{};
};

}  // namespace kvstore
