// dlopen, and the table of functions.
#include "net/tls_library.h"

#include <dlfcn.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

#include "base/mutex.h"

namespace kvstore {
namespace {

constexpr const char* kLibrarySetting = "KVSTORE_OPENSSL_LIB";
constexpr const char* kLibraries[] = {"libssl.so.3", "libssl.so.1.1"};

constexpr std::string_view kPeerCertificate = "SSL_get1_peer_certificate";

struct Symbol {
    const char* name;
    size_t offset;  // of its pointer in openssl::Api
};

#define KV_SYMBOL(function) {#function, offsetof(openssl::Api, function)}
constexpr Symbol kSymbols[] = {KV_SYMBOL(TLS_method),
                               KV_SYMBOL(SSL_CTX_new),
                               KV_SYMBOL(SSL_CTX_free),
                               KV_SYMBOL(SSL_CTX_ctrl),
                               KV_SYMBOL(SSL_CTX_set_options),
                               KV_SYMBOL(SSL_CTX_set_ciphersuites),
                               KV_SYMBOL(SSL_CTX_set_num_tickets),
                               KV_SYMBOL(SSL_CTX_set_default_read_buffer_len),
                               KV_SYMBOL(SSL_CTX_set_default_passwd_cb),
                               KV_SYMBOL(SSL_CTX_use_certificate_chain_file),
                               KV_SYMBOL(SSL_CTX_use_PrivateKey_file),
                               KV_SYMBOL(SSL_CTX_check_private_key),
                               KV_SYMBOL(SSL_CTX_load_verify_locations),
                               KV_SYMBOL(SSL_CTX_set_verify),
                               KV_SYMBOL(SSL_CTX_get0_certificate),
                               KV_SYMBOL(SSL_new),
                               KV_SYMBOL(SSL_free),
                               KV_SYMBOL(SSL_set_bio),
                               KV_SYMBOL(SSL_set_connect_state),
                               KV_SYMBOL(SSL_set_accept_state),
                               KV_SYMBOL(SSL_do_handshake),
                               KV_SYMBOL(SSL_read_ex),
                               KV_SYMBOL(SSL_write_ex),
                               KV_SYMBOL(SSL_get_error),
                               KV_SYMBOL(SSL_has_pending),
                               KV_SYMBOL(SSL_ctrl),
                               KV_SYMBOL(SSL_set1_host),
                               KV_SYMBOL(SSL_set_hostflags),
                               KV_SYMBOL(SSL_get0_param),
                               KV_SYMBOL(SSL_get_verify_result),
                               KV_SYMBOL(X509_VERIFY_PARAM_set1_ip_asc),
                               KV_SYMBOL(X509_verify_cert_error_string),
                               KV_SYMBOL(X509_free),
                               KV_SYMBOL(X509_get0_notAfter),
                               KV_SYMBOL(X509_get_ext_d2i),
                               KV_SYMBOL(X509_get_subject_name),
                               KV_SYMBOL(X509_NAME_get_text_by_NID),
                               KV_SYMBOL(GENERAL_NAME_get0_value),
                               KV_SYMBOL(GENERAL_NAMES_free),
                               KV_SYMBOL(OPENSSL_sk_num),
                               KV_SYMBOL(OPENSSL_sk_value),
                               KV_SYMBOL(ASN1_STRING_get0_data),
                               KV_SYMBOL(ASN1_STRING_length),
                               KV_SYMBOL(ASN1_TIME_diff),
                               KV_SYMBOL(BIO_meth_new),
                               KV_SYMBOL(BIO_meth_set_write),
                               KV_SYMBOL(BIO_meth_set_read),
                               KV_SYMBOL(BIO_meth_set_ctrl),
                               KV_SYMBOL(BIO_new),
                               KV_SYMBOL(BIO_set_data),
                               KV_SYMBOL(BIO_get_data),
                               KV_SYMBOL(BIO_set_init),
                               KV_SYMBOL(BIO_set_flags),
                               KV_SYMBOL(BIO_clear_flags),
                               KV_SYMBOL(ERR_clear_error),
                               KV_SYMBOL(ERR_get_error),
                               KV_SYMBOL(ERR_reason_error_string),
                               KV_SYMBOL(SSL_get1_peer_certificate)};
#undef KV_SYMBOL

void* open_library(std::string* name) {
    if (const char* const given = std::getenv(kLibrarySetting); given != nullptr && *given != 0) {
        *name = given;
        return dlopen(given, RTLD_NOW | RTLD_LOCAL);
    }
    for (const char* const library : kLibraries) {
        *name = library;
        if (void* const found = dlopen(library, RTLD_NOW | RTLD_LOCAL)) {
            return found;
        }
    }
    return nullptr;
}

}  // namespace

Result<const OpenSsl*> OpenSsl::load() {
    static Mutex* const mutex = new Mutex();  // threads may outlive static objects
    static const OpenSsl* loaded = nullptr;
    const MutexLock lock(*mutex);
    if (loaded != nullptr) {
        return loaded;
    }
    std::string name;
    void* const library = open_library(&name);
    if (library == nullptr) {
        const char* const why = dlerror();
        return {Code::kUnsupported, "TLS needs OpenSSL 1.1.1 or later (Debian: libssl3; " +
                                        std::string(kLibrarySetting) +
                                        " names its library): " + (why != nullptr ? why : name)};
    }
    std::unique_ptr<OpenSsl> found(new OpenSsl());
    if (Status status = found->find_functions(library, name); !status.ok()) {
        return status;
    }
    loaded = found.release();
    return loaded;
}

// libssl's handle finds what libcrypto has, too.
Status OpenSsl::find_functions(void* library, const std::string& name) {
    for (const Symbol& symbol : kSymbols) {
        void* found = dlsym(library, symbol.name);
        if (found == nullptr && symbol.name == kPeerCertificate) {
            found = dlsym(library, "SSL_get_peer_certificate");  // of 1.1.1
        }
        std::memcpy(reinterpret_cast<char*>(&api_) + symbol.offset, &found, sizeof found);
        if (found == nullptr) {
            return {Code::kUnsupported,
                    name + " lacks " + symbol.name + ": OpenSSL 1.1.1 or later has it"};
        }
    }
    return {};
}

std::string OpenSsl::take_error() const {
    const unsigned long error = api_.ERR_get_error();
    const char* const reason = error == 0 ? nullptr : api_.ERR_reason_error_string(error);
    std::string phrase = reason != nullptr ? reason : "error " + std::to_string(error);
    api_.ERR_clear_error();
    return phrase;
}

}  // namespace kvstore
